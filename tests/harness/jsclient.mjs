// Hosts clients of npm `centrifuge`, driven by JSON lines on stdin; see sdk.py.
//
// Usage: node jsclient.mjs TOOLS_DIRECTORY PACKAGE VERSION

import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const [tools, packageName, version] = process.argv.slice(2)
const require = createRequire(join(tools, 'package.json'))
const manifest = join(tools, 'node_modules', packageName, 'package.json')
const installed = JSON.parse(readFileSync(manifest)).version
if (installed !== version) {
    throw new Error(`${packageName} is ${installed}, not ${version}; run tests/tools/install`)
}
// Two builds, which know only their own classes.
const JSON_BUILD = require(packageName)
const PROTOBUF_BUILD = require(`${packageName}/build/protobuf`)
const WebSocket = require('ws')

// Up to some version between 5.5.3 and 5.8.0 the SDK mixes up the order when a frame of
// several messages is followed by another frame in the same tick. Browsers never deliver
// two in one tick, `ws` does unless told not to.
const allowSynchronousEvents = version !== '5.5.3'

const clients = new Map()

function write(message) {
    process.stdout.write(JSON.stringify(message) + '\n')
}

// Payloads are bytes in protobuf: here JSON, as with the other clients.

function packed(state, data) {
    return state.protobuf ? new TextEncoder().encode(JSON.stringify(data)) : data
}

function unpacked(data) {
    if (!(data instanceof Uint8Array)) {
        return data
    }
    return data.length ? JSON.parse(new TextDecoder().decode(data)) : null // absent
}

function info({ user, client, connInfo, chanInfo }) {
    return { user, client, conn_info: unpacked(connInfo), chan_info: unpacked(chanInfo) }
}

// 5.5.3 gives objects for 64 bits in protobuf.
function number(value) {
    return value?.toNumber ? value.toNumber() : value ?? null
}

function publication(ctx) {
    return {
        offset: number(ctx.offset),
        data: unpacked(ctx.data),
        tags: ctx.tags ?? {},
        info: ctx.info ? { user: ctx.info.user, client: ctx.info.client } : null,
    }
}

// A token to begin with, and what getToken gives: the last one again and again.
function tokens({ token, get_token: given }, { UnauthorizedError }, asked) {
    const options = token ? { token } : {}
    if (given) {
        const left = [...given]
        options.getToken = async () => {
            const next = left.length > 1 ? left.shift() : left[0]
            asked()
            if (next.throw === 'unauthorized') throw new UnauthorizedError('no')
            if (next.throw) throw new Error(next.throw)
            return next
        }
    }
    return options
}

function create(name, options) {
    const { url, min_delay: minDelay, max_delay: maxDelay, ping_delay: pingDelay } = options
    const build = options.protobuf ? PROTOBUF_BUILD : JSON_BUILD
    const state = { socket: null, protobuf: options.protobuf, build }
    class Socket extends WebSocket {
        constructor(address, protocols) {
            super(address, protocols, { allowSynchronousEvents })
            state.socket = this
        }
    }
    const client = new build.Centrifuge(url, {
        websocket: Socket,
        minReconnectDelay: minDelay * 1000,
        maxReconnectDelay: maxDelay * 1000,
        maxServerPingDelay: pingDelay * 1000,
        ...tokens(options, build, () => report('get_token', {})),
        name: options.name,
        data: options.data === null ? null : packed(state, options.data),
    })
    const report = (event, fields) => write({ client: name, event, ...fields })
    client.on('connecting', ({ code, reason }) => report('connecting', { code, reason }))
    client.on('connected', (ctx) => report('connected', {
        id: ctx.client,
        data: unpacked(ctx.data) ?? null,
    }))
    client.on('disconnected', ({ code, reason }) => report('disconnected', { code, reason }))
    client.on('error', (ctx) => report('error', ctx.error))
    client.on('subscribed', ({ channel, ...ctx }) => report('server_subscribed', {
        channel,
        recovered: ctx.recovered,
        data: unpacked(ctx.data) ?? null,
        offset: number(ctx.streamPosition?.offset),
    }))
    client.on('publication', ({ channel, ...ctx }) => {
        report('server_publication', { channel, ...publication(ctx) })
    })
    client.on('unsubscribed', ({ channel }) => report('server_unsubscribed', { channel }))
    clients.set(name, { client, state, report, delays: { minDelay, maxDelay } })
}

function subscribe({ client, state, report, delays }, options) {
    const { channel, join_leave: joinLeave = false, delta } = options
    let sub = client.getSubscription(channel)
    if (sub === null) {
        sub = client.newSubscription(channel, {
            minResubscribeDelay: delays.minDelay * 1000,
            maxResubscribeDelay: delays.maxDelay * 1000,
            ...tokens(options, state.build, () => report('get_token', { channel })),
            joinLeave,
            ...(delta ? { delta: 'fossil' } : {}),
        })
        sub.on('subscribing', ({ code, reason }) => report('subscribing', { channel, code, reason }))
        sub.on('unsubscribed', ({ code, reason }) => report('unsubscribed', { channel, code, reason }))
        sub.on('error', (ctx) => report('sub_error', { channel, ...ctx.error }))
        sub.on('publication', (ctx) => report('publication', { channel, ...publication(ctx) }))
        sub.on('join', (ctx) => report('join', { channel, info: info(ctx.info) }))
        sub.on('leave', (ctx) => report('leave', { channel, info: info(ctx.info) }))
        sub.on('subscribed', (ctx) => report('subscribed', {
            channel,
            data: unpacked(ctx.data) ?? null,
            recoverable: ctx.recoverable,
            positioned: ctx.positioned,
            was_recovering: ctx.wasRecovering,
            recovered: ctx.recovered,
            offset: number(ctx.streamPosition?.offset),
            epoch: ctx.streamPosition?.epoch ?? null,
        }))
    }
    sub.subscribe()
}

async function carryOut(command) {
    if (command.do === 'create') {
        return create(command.client, command)
    }
    const entry = clients.get(command.client)
    const { client, state } = entry
    switch (command.do) {
        case 'connect': return client.connect()
        case 'disconnect': return client.disconnect()
        case 'subscribe': return subscribe(entry, command)
        case 'unsubscribe': return client.getSubscription(command.channel).unsubscribe()
        case 'publish': await client.publish(command.channel, packed(state, command.data)); return
        case 'rpc':
            return unpacked((await client.rpc(command.method, packed(state, command.data))).data)
        case 'presence': {
            const { clients: present } = await client.presence(command.channel)
            return Object.fromEntries(
                Object.entries(present).map(([id, one]) => [id, info(one)])
            )
        }
        case 'presence_stats': {
            const { numClients, numUsers } = await client.presenceStats(command.channel)
            return { clients: numClients, users: numUsers }
        }
        case 'cut': state.socket._socket.destroy(); return
        case 'history': {
            const { limit, since, reverse } = command
            const page = await client.history(command.channel, { limit, since, reverse })
            return {
                ...page,
                offset: number(page.offset),
                publications: page.publications.map(publication),
            }
        }
        default: throw new Error(`unknown command ${command.do}`)
    }
}

const lines = createInterface({ input: process.stdin })
lines.on('line', async (line) => {
    const command = JSON.parse(line)
    try {
        write({ id: command.id, result: await carryOut(command) ?? null })
    } catch (error) {
        const code = typeof error.code === 'number' ? error.code : -1
        write({ id: command.id, error: { code, message: error.message ?? String(error) } })
    }
})
lines.on('close', () => process.exit(0))
